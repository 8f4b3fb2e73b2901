#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes an aarch64 environment that runs on x86-64: a root of Debian packages, and in FOLDER/env what looks like a virtual
# environment, whose bin/python runs under qemu-user; torch_npu is in FOLDER/npu. Compilers and everything else that it starts run natively.
#
#     tools/aarch64_environment.sh FOLDER TORCH_VERSION
#
# On Debian 12 or newer. Nothing of the system is changed but for the packages in the first check, which are installed
# if the caller is root. What is there from an earlier run of this same script is left as it is.
set -euo pipefail

mkdir -p "$1"
folder=$(cd "$1" && pwd)
torch=$2

host_packages=(qemu-user-static g++-aarch64-linux-gnu ninja-build)
# Python and what it and PyTorch's wheels link to.
root_packages=(
  python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
  libc6 libcrypt1 libgcc-s1 libstdc++6 libgomp1
  zlib1g libbz2-1.0 liblzma5 libexpat1 libffi8 libssl3 libsqlite3-0 libuuid1 libncursesw6 libtinfo6 libreadline8
)
# All without what they depend on: pip would look at this machine for that, and not at the other one.
wheels=(
  "torch==$torch" filelock fsspec jinja2 markupsafe 'mpmath<1.4' networkx sympy typing_extensions
  numpy
  pytest iniconfig packaging pluggy pygments hypothesis sortedcontainers
  pip 'setuptools>=77'
)

# In a folder of their own, for PYTHONPATH where the tests are to have an NPU.
npu_wheels=("torch_npu==$torch" pyyaml)

stamp="$torch $(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)"
if [[ -f $folder/made && $(<"$folder/made") == "$stamp" ]]; then
  exit 0
fi

missing=()
for package in "${host_packages[@]}"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
  if ((EUID)); then
    echo "aarch64_environment.sh: install first: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  apt-get update --quiet
  apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
fi

rm -rf "$folder"/{root,env,npu,made}
apt=$folder/apt
mkdir -p "$folder/root" "$apt"/{state/lists/partial,cache/archives/partial,debs}
: > "$apt/status"
# Of its own, so that the system's apt need not know of another architecture. The sources are the system's.
options=(
  -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
  -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
)
apt-get "${options[@]}" --quiet update
(cd "$apt/debs" && apt-get "${options[@]}" --quiet download "${root_packages[@]}")
for deb in "$apt"/debs/*.deb; do
  dpkg --extract "$deb" "$folder/root"
done
rm -rf "$apt"

site=$folder/env/lib/python3.11/site-packages
mkdir -p "$folder/env/bin" "$site"
printf '%s\n' "home = $folder/root/usr/bin" 'include-system-site-packages = false' > "$folder/env/pyvenv.cfg"
cat > "$folder/env/bin/python" << EOF
#!/bin/sh
exec qemu-aarch64-static -0 "\$0" -L "$folder/root" "$folder/root/usr/bin/python3.11" "\$@"
EOF
chmod +x "$folder/env/bin/python"
platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)
pip=("${PYTHON:-python3}" -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.11 "${platforms[@]}")
"${pip[@]}" --target "$site" "${wheels[@]}"
"${pip[@]}" --target "$folder/npu" "${npu_wheels[@]}"

"$folder/env/bin/python" -c 'import platform; assert platform.machine() == "aarch64"; print("aarch64:", platform.libc_ver())'
echo "$stamp" > "$folder/made"
