#!/usr/bin/env bash
# The whole way from raw images to a report, on a small made-up data set or on your own.
set -euo pipefail
usage() {
    cat <<'HELP'
usage: ./quickstart.sh [--data DIR] [--minutes M] [--workspace DIR] [--device D]

Plans, preprocesses, trains one fold of every member, predicts, scores and reports.

  --data DIR       a raw data set in nnU-Net's format (DatasetXXX_Name); it is read where it lies.
                   Without it a phantom of the head and neck with nine organs is made.
  --minutes M      training time in minutes, shared out among the members (default 4)
  --workspace DIR  where everything is written (default: quickstart_workspace beside this script)
  --device D       cpu, cuda or mps (default: what c2f_train chooses)

example: ./quickstart.sh --data /data/raw/Dataset015_HeadNeckKBP --minutes 40
HELP
}
fail() {
    echo "$1" >&2
    exit "${2:-1}"
}
holds_files() { compgen -G "$1/*" >/dev/null; }
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data='' minutes=4 workspace=$root/quickstart_workspace device=''
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        --data | --minutes | --workspace | --device)
            [[ -n ${2:-} ]] || fail "quickstart.sh: $1 needs a value; see ./quickstart.sh --help" 2
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        *) fail "quickstart.sh: unknown option '$1'; see ./quickstart.sh --help" 2 ;;
    esac
done
case $device in '' | cpu | cuda | mps) ;; *) fail "quickstart.sh: --device '$device' is not one of cpu, cuda, mps" 2 ;; esac
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "quickstart.sh: --minutes '$minutes' is not a number; give minutes such as 3" 2
if [[ -n $data ]]; then
    [[ -f $data/dataset.json ]] || fail "$data: no dataset.json there; give the folder of one raw data set (DatasetXXX_Name)"
    data=$(cd -- "$data" && pwd)
    [[ ${data##*/} =~ ^Dataset[0-9]{3}_.+ ]] || fail "$data: a raw data set's folder is named DatasetXXX_Name; rename it or link to it under such a name"
fi
mkdir -p -- "$workspace"
workspace=$(cd -- "$workspace" && pwd)

# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
use_environment "$root"
on_device=(${device:+-device "$device"})

export C2F_PREPROCESSED=$workspace/preprocessed C2F_RESULTS=$workspace/results
if [[ -z $data ]]; then
    data=$workspace/raw/Dataset900_Phantom
    if [[ ! -f $data/dataset.json ]]; then
        step "making a phantom data set"
        python "$root/dataset_conversion/phantom.py" "$workspace/raw"
    fi
fi
C2F_RAW=$(dirname -- "$data")
export C2F_RAW
name=${data##*/}
predictions=$workspace/predictions/$name

step "planning and preprocessing $name"
c2f_plan_and_preprocess -d "$name"
step "training every member on fold 0 for $minutes minutes"
c2f_train all 0 -d "$name" --minutes "$minutes" "${on_device[@]+"${on_device[@]}"}"
code=0 # of a step that failed in part: a bad test scan is no reason to go without the cross-validation
if holds_files "$data/imagesTs"; then
    step "predicting imagesTs"
    c2f_predict -i "$data/imagesTs" -o "$predictions" -d "$name" --report "${on_device[@]+"${on_device[@]}"}" || code=$?
    if holds_files "$data/labelsTs"; then
        step "scoring against labelsTs"
        c2f_evaluate "$data/labelsTs" "$predictions" -djfile "$data/dataset.json" || code=$?
    fi
fi
step "cross-validation report"
c2f_crossval -d "$name" "${on_device[@]+"${on_device[@]}"}" || code=$?
((code == 0)) || fail "quickstart.sh: a step after the training failed, see its error above" "$code"
step "done"
for report in "$C2F_RESULTS/$name"/*/crossval/report.html; do echo "report: $report"; done
echo "every slice and 3D, in the browser: $root/.venv/bin/c2f_view FOLDER, with the folder of a report.html"
