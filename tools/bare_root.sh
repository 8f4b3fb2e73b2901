#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the package as a new user would: in a root of Debian 12 or Ubuntu 22.04 that has python3-venv and g++ and
# nothing else, from the sources, then from a wheel of them. Each copies some bytes.
#
#     tools/bare_root.sh debian|ubuntu pip|uv TORCH_VERSION
#
# The log is also in build/roots/DISTRIBUTION-INSTALLER.txt. The root is deleted afterwards. Wants root, debootstrap, and
# some 10 GB. PIP_FIND_LINKS, where set, is a folder of wheels that the root sees too.
set -euo pipefail
cd "$(dirname "$0")/.."

distribution=$1 installer=$2 torch=$3
case $distribution in
  debian) bootstrap=(bookworm) mirror=http://deb.debian.org/debian ;;
  ubuntu) bootstrap=(--components=main,universe jammy) mirror=http://archive.ubuntu.com/ubuntu ;;
esac
name=$distribution-$installer
root=$PWD/build/roots/$name
mkdir -p "$root"
exec > >(tee "$root.txt") 2>&1
trap 'rm -rf "$root"' EXIT

# Signatures are not checked, as a machine of one distribution lacks the keys of the other.
debootstrap --no-check-gpg --variant=minbase --include=python3-venv,g++ "${bootstrap[@]}" "$root" "$mirror" > "$root.bootstrap"
mkdir -p "$root"/{source,wheels} "$root/etc/ssl/certs"
git ls-files -z | xargs -0 cp --parents --target-directory="$root/source"
cp /etc/resolv.conf "$root/etc"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"

cat > "$root/install.sh" << 'SCRIPT'
set -euo pipefail
step() { printf '\n[%d s] $ %s\n' "$SECONDS" "$*"; "$@"; }
# What cannot work has to say what to type.
refused() { step "$@" > /tmp/refused 2>&1 && exit 1; grep -A 3 -e '^\[' -e 'install torch first' /tmp/refused; }
report() { (cd / && step python -m llm_datadist_torch > /tmp/report && cat /tmp/report && ! grep -q BROKEN /tmp/report); }

. /etc/os-release
echo "$PRETTY_NAME, $(python3 --version), g++ $(g++ -dumpfullversion)"
step python3 -m venv /env
. /env/bin/activate
if [[ $INSTALLER == pip ]]; then
  refused pip install --quiet /source
  step pip install --quiet "torch==$TORCH"
  step pip install --quiet /source
  report
  step pip wheel --quiet --no-deps --wheel-dir /dist /source
  step pip uninstall --quiet --yes llm_datadist_torch
  step pip install --quiet --no-index /dist/*.whl
else
  step pip install --quiet uv
  step uv pip install --quiet "torch==$TORCH" ninja 'setuptools>=77'
  refused uv pip install --quiet /source
  step uv pip install --quiet --no-build-isolation /source
  report
  step uv build --quiet --wheel --no-build-isolation --out-dir /dist /source
  step uv pip uninstall --quiet llm_datadist_torch
  step uv pip install --quiet --no-index /dist/*.whl
fi
report
step python -m zipfile --list /dist/*.whl
echo "[$SECONDS s] done"
SCRIPT

wheels=${PIP_FIND_LINKS:-}
unshare --mount bash -euc '
  root=$1 wheels=$2
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  [[ -z $wheels ]] || mount --bind "$wheels" "$root/wheels"
  exec chroot "$root" env --ignore-environment HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin INSTALLER="$3" TORCH="$4" \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS=/wheels UV_FIND_LINKS=/wheels bash /install.sh
' - "$root" "$wheels" "$installer" "$torch"
