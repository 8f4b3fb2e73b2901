# SPDX-License-Identifier: Apache-2.0
"""What differs between the versions of torch and torch_npu for their users, as far as tests depend on it."""

import torch

VERSION = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))

# torch 2.7 has no tag for exactly the strides of the program.
STRIDES_TAG = torch.Tag.needs_exact_strides if VERSION >= (2, 8) else torch.Tag.needs_fixed_stride_order
# npugraph_ex imports torchair, which up to here binds functions of CANN's graph engine that are not simulated.
NPUGRAPH_EX = VERSION >= (2, 10)
# What a replay of a graph calls to set the seed of torch_npu's generator.
SETS_SEED = set() if VERSION >= (2, 10) else {"aclnnInplaceFillScalar", "aclnnInplaceFillScalarGetWorkspaceSize"}
# Whether torch_npu names the chip.
KNOWS_ASCEND950 = VERSION >= (2, 10)
