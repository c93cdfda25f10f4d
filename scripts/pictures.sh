#!/usr/bin/env bash
# Picture a report, or the viewer on it, in a headless Chromium; made for the pictures of documentation/ (CONTRIBUTING.md says which).
#   scripts/pictures.sh report FOLDER OUT.png WIDTH,HEIGHT [SECTION]   FOLDER/report.html from its top, or from a section, such as cases
#   scripts/pictures.sh viewer FOLDER OUT.png WIDTH,HEIGHT [CASE]      c2f_view FOLDER at its first case, or at another one
# Needs Chromium (Debian: apt-get install chromium) and the environment that ./test.sh makes.
set -euo pipefail
if [[ $# -lt 4 || $# -gt 5 || ! $1 =~ ^(report|viewer)$ || ! $4 =~ ^[0-9]+,[0-9]+$ ]]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
kind=$1 folder=$(cd "$2" && pwd) picture=$(realpath "$3") size=$4 place=${5:-}
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "no Chromium found; install it (Debian: apt-get install chromium)" >&2
    exit 1
}
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

case $kind in
    report)
        address=file://$folder/report.html
        if [[ -n $place ]]; then # what stands before it is hidden: Chromium's picture of a page that is scrolled is blank
            sed "s|</head>|<style>:has(~ #$place) { display: none }</style>&|" "$folder/report.html" >"$work/report.html"
            address=file://$work/report.html
        fi
        ;;
    viewer)
        python -m c2f_nnunet.cli.view "$folder" --no_browser >"$work/said" &
        server=$!
        until address=$(grep -os 'http://[^ ]*' "$work/said"); do
            kill -0 "$server" 2>/dev/null || exit 1 # it has told why
            sleep 0.1
        done
        address+=${place:+#case=$place}
        ;;
esac
"$chromium" --headless --no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist \
    --hide-scrollbars --user-data-dir="$work/profile" --window-size="$size" --virtual-time-budget=60000 --screenshot="$work/picture.png" \
    "$address" 2>"$work/errors" >&2 || { cat "$work/errors" >&2; exit 1; }
# 256 colours, chosen so that small coloured parts keep theirs (method 1), are enough for a page, and half of the size
python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(256, method=1).save(sys.argv[2], optimize=True)' "$work/picture.png" "$picture"
echo "$picture"
