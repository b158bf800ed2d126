#!/usr/bin/env bash
# What a user gets: builds sdist and wheel, installs the wheel into an environment of its own, and uses it outside of the checkout.
#
#   scripts/check_release.sh          # --help and two questions of the demo; some minutes and gigabytes, nearly all of them torch
#
# CHECK_DEMO=0 leaves the demo out.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 HEADROUTER_CACHE="$work/cache"
unset PYTHONPATH
started=$SECONDS

python -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet build
"$work/venv/bin/python" -m build --outdir "$work/dist" .
wheel=$(ls "$work"/dist/*.whl)

version=$(basename "$wheel" | cut -d- -f2)
if tag=$(git describe --tags --exact-match --match 'v*' 2> /dev/null); then
  [ "v$version" = "$tag" ] || { echo "$tag was built as $version: commit what is changed" >&2; exit 1; }
  grep -qx "version: $version" CITATION.cff || { echo "CITATION.cff is not of $version" >&2; exit 1; }
  grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md has no part on $version" >&2; exit 1; }
fi

python -m venv "$work/user"
# A CPU build where one is at hand; otherwise the next line takes whatever pip finds.
"$work/user/bin/pip" install --quiet "torch==2.13.0" || true
"$work/user/bin/pip" install --quiet "headrouter-pl[demo] @ file://$wheel"
cd "$work"  # not the checkout
"$work/user/bin/pip" check
test "$("$work/user/bin/headrouter-pl" --version)" = "$version"
"$work/user/bin/headrouter-pl" --help > help.txt
grep -q calibrate help.txt
"$work/user/bin/python" -c "from headrouter_pl import PromptRouter; print(PromptRouter.default().predict(['Transcribe the speech.']))"
if [ "${CHECK_DEMO:-1}" != 0 ]; then
  "$work/user/bin/headrouter-pl" demo --questions 2 --output demo.png
  test -s demo.png
fi
echo "Release checked in $((SECONDS - started)) s: $(basename "$wheel")"
