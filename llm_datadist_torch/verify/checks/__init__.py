# SPDX-License-Identifier: Apache-2.0
"""The checks, by subject. A module registers its checks when it is imported; ``registry._MODULES`` lists the modules."""
