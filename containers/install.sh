#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the checkout in the current folder into PREFIX, inside an image: for the Dockerfile and nemo-launcher.def.
# TORCH names another build of torch than constraints.txt, such as one for older drivers.
set -eu
PREFIX="${PREFIX:-/opt/nemo-launcher}"
TORCH="${TORCH:-$(grep '^torch==' constraints.txt)}"

# a compiler for the kernels that torch builds at run time, and the libraries through which NCCL uses InfiniBand:
# without them, it falls back to TCP without an error
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends g++ gcc ibverbs-providers libc6-dev libibverbs1 librdmacm1
apt-get clean

python3 -m venv "$PREFIX"
grep -v '^torch==' constraints.txt > "$PREFIX/constraints.txt"
"$PREFIX/bin/pip" install --no-cache-dir --constraint "$PREFIX/constraints.txt" "$TORCH"
"$PREFIX/bin/pip" install --no-cache-dir --constraint "$PREFIX/constraints.txt" --editable ".[metrics]"

# a build of torch for CPUs would be noticed only by a job on a GPU
"$PREFIX/bin/python" -c 'import sys, torch; sys.exit(None if torch.version.cuda else "TORCH is a build without CUDA")'
"$PREFIX/bin/nemo-launcher" --help > /dev/null
