# shellcheck shell=bash
# Sourced by test.sh and quickstart.sh: the project's virtual environment.

# The newest Python that is 3.10 or later, runs, and can make virtual environments.
find_python() {
    local candidate
    for candidate in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
        # a name on the PATH may be a shim of a version manager that does not run: try it
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.10 or later with the modules venv and ensurepip was found; install one" \
         "(on Debian and Ubuntu: apt-get install python3 python3-venv) and start again" >&2
    return 1
}

# Make ROOT/.venv and install the project into it, unless what it was installed from is unchanged; then activate it.
use_environment() {
    local root=$1 venv=$1/.venv python wanted
    # a virtual environment holds its own path: a moved one is made anew, as is one whose making was cut short
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || ! grep -qsF "$venv" "$venv/bin/activate"; then
        python=$(find_python)
        echo "making the virtual environment $venv with $("$python" --version)" >&2
        "$python" -m venv --clear "$venv"
    fi
    wanted=$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum)
    if [[ $(cat "$venv/installed_from" 2>/dev/null || true) != "$wanted" ]]; then
        echo "installing the project and what it needs into $venv (a few minutes the first time)" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "${root}[test]"
        echo "$wanted" >"$venv/installed_from"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
}
