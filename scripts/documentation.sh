#!/usr/bin/env bash
# Build the site of documentation/ in the folder site/; a warning is an error.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root"
cd "$root"
python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env documentation site
echo "$root/site/index.html"
