#!/usr/bin/env bash
# Run the tests in the project's own virtual environment; arguments go to pytest: ./test.sh tests/test_geometry.py -k crop
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root"
cd "$root"
exec python -m pytest "$@"
