#!/usr/bin/env bash
# Make c2f_nnunet/web/niivue.umd.js and its licences again from the npm registry. Needs npm; users do not: the files are committed.
# To change the version: change the two lines below, run this, and look at the viewer's tests and pictures.
set -euo pipefail
version=0.69.0
sha256=47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af

web=$(cd "$(dirname "${BASH_SOURCE[0]}")/../c2f_nnunet/web" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --ignore-scripts --no-audit --no-fund --silent "@niivue/niivue@$version"
bundle=$work/node_modules/@niivue/niivue/dist/niivue.umd.js
echo "$sha256  $bundle" | sha256sum --check --quiet || {
    echo "niivue.umd.js of version $version is not the file that was looked at; compare both before you change the sum here" >&2
    exit 1
}
cp "$bundle" "$web/niivue.umd.js"

{
    cat <<BSD
niivue.umd.js is NiiVue $version, built by its authors, unchanged (npm package @niivue/niivue, dist/niivue.umd.js,
SHA-256 $sha256).

BSD 2-Clause License

Copyright (c) 2021, Niivue
All rights reserved.

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this
   list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE
FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

The bundle holds these packages, under the licences that follow; numcodecs holds Blosc (BSD-3-Clause), LZ4 (BSD-2-Clause)
and Zstandard (BSD-3-Clause):
BSD
    find "$work/node_modules" -name package.json -path '*node_modules*' | sort | while read -r package; do
        folder=$(dirname "$package")
        name=${folder##*node_modules/}
        case $name in  # a package, not a part of one
            @niivue/niivue | @rollup/* | */*/*) continue ;;  # rollup builds, it is not in the bundle
            @*/* | [!@]*) [[ $name == @* || $name != */* ]] || continue ;;
        esac
        licence=$(find "$folder" -maxdepth 1 -iname 'licen[cs]e*' | sort | head -n 1)
        printf '\n---- %s (%s)\n\n' "$name" "$(sed -n 's/^ *"license": *"\(.*\)".*/\1/p' "$package" | head -n 1)"
        [[ -z $licence ]] || cat "$licence"
    done
} >"$web/niivue.LICENSE.txt"
echo "$web/niivue.umd.js: NiiVue $version"
