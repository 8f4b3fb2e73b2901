# SPDX-License-Identifier: Apache-2.0
"""Writes the names of LLM-DataDist that differ into docs/moving_from_llm_datadist.md; with --check, fails if outdated.

Compares llm_datadist_api.pyi with the installed package. A name that is missing, or has other arguments, defaults or
numbers, is an error unless it is listed below, and a listed name that is there again is an error too.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import llm_datadist_torch
from llm_datadist_torch.datadist.settings import Setting
from llm_datadist_torch.datadist.unserved import UnservedCall, UnservedProperty

STUB = Path(__file__).with_name("llm_datadist_api.pyi")
PAGE = Path(__file__).parent.parent / "docs" / "moving_from_llm_datadist.md"
BEGIN, END = "<!-- Written by tools/compare_api.py: begin -->\n", "<!-- Written by tools/compare_api.py: end -->\n"

SAME = "the same"  # what is here of a name that the page leaves out
# Names for imports alone: making one raises LLM_FEATURE_NOT_ENABLED.
UNSERVED = {
    "KvCache": "the older interface; use Cache",
    "KvCacheManager": "the older interface; use CacheManager",
    "Tensor": "the graph engine's; use torch.Tensor",
    "TensorDesc": "the graph engine's; use torch.Tensor",
}
STRICTER = {
    "BlocksCacheKey": "each value must fit a uint64",
    "Cache.create_cpu_cache": "is_blocks_cache is False; None raises TypeError",
    "CacheDesc": "num_tensors and all lengths must be greater than 0",
    "CacheManager.copy_blocks": "refuses two sources for one block",
    "CacheManager.copy_cache": "checks all arguments before it writes; refuses a byte written twice",
    "CacheManager.pull_blocks": "checks all arguments and both caches before it writes",
    "CacheManager.pull_cache": "checks all arguments and both caches before it writes",
    "CacheManager.push_blocks": "checks all arguments and both caches before it writes",
    "CacheManager.push_cache": "checks all arguments and both caches before it writes",
    "CacheManager.register_blocks_cache": "refuses a key that is in use, which LLM-DataDist gives to the new cache; None raises TypeError",
    "CacheManager.register_cache": "refuses a key that is in use, which LLM-DataDist leaves to the old cache; None raises TypeError",
    "CacheManager.swap_blocks": "refuses two sources for one block; None raises TypeError",
    "LLMConfig.device_id": "a list or tuple must hold one int",
    "LLMConfig.ge_options": "checked when it is assigned, not by init",
    "LLMConfig.host_mem_pool_cfg": "checked when it is assigned, not by init",
    "LLMConfig.mem_pool_cfg": "checked when it is assigned, not by init",
}
NOTES = {
    "CacheDesc.data_type": "also takes a torch dtype",
    "CacheDesc.update_dim": "also for a tuple",
    "CacheManager.allocate_blocks_cache": "needs no memory pool",
    "CacheManager.unregister_cache": "also ends an allocated cache",
    "LLMConfig": "also takes the local settings as arguments",
    "LLMConfig.generate_options": "has llm.MemoryUtilization only if it was assigned",
    "LLMConfig.local_comm_res": "its one effect is to enable the cache manager",
    "LLMConfig.options": "a new dict each time",
    "LLMClusterInfo.local_ip_info_list": "recorded, not used; the ip is text",
    "LLMClusterInfo.remote_ip_info_list": "the ip is text",
    "LLMConfig.enable_remote_cache_accessible": "not needed",
    "LLMConfig.enable_switch_role": "not needed",
    "LLMConfig.transfer_backend": 'only "hixl" has an effect',
    "LLMDataDist.link": "[over the hosts](remote.md#links-by-rank-table) of the servers",
    "LLMDataDist": "role is recorded, not used",
    "LLMDataDist.switch_role": "also to the same role",
    "TransferWithCacheKeyConfig": "a range that is left out means all layers",
    "LLMException": "the text of an error ends in the name of its code",
}


def main() -> int:
    """Writes or checks the page and returns the exit status."""
    text = PAGE.read_text()
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    updated = text[:start] + "".join(table()) + text[stop:]
    if "--check" not in sys.argv:
        PAGE.write_text(updated)
    elif updated != text:
        print(f"{PAGE.name} is outdated: run python tools/compare_api.py")
        return 1
    return 0


def table() -> Iterator[str]:
    """The lines of the list of the names that differ."""
    seen: set[str] = set()
    yield "\n"
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.Assign):
            compare_assignment(node)
        elif isinstance(node, ast.ClassDef):
            names_of: dict[str, list[str]] = {}  # the names of the class, by what is here of them
            for name, outcome in compare_class(node):
                seen.add(name)
                names_of.setdefault(outcome, []).append(name)
            for outcome, (first, *others) in names_of.items():
                names = [first, *(name.removeprefix(node.name) for name in others)]
                if outcome != SAME:
                    yield f"- {', '.join(f'`{name}`' for name in names)}: {outcome}\n"
    yield "\n"
    unknown = (UNSERVED.keys() | STRICTER.keys() | NOTES.keys()) - seen
    assert not unknown, f"listed here and not in {STUB.name}: {unknown}"


def compare_assignment(node: ast.Assign) -> None:
    """Fails if a submodule or one of its names is missing, or another name of a class is another object."""
    name = ast.unparse(node.targets[0])
    if name != "MODULES":
        assert getattr(llm_datadist_torch, name) is getattr(llm_datadist_torch, ast.unparse(node.value))
        return
    for module, exports in ast.literal_eval(node.value).items():
        ours = importlib.import_module(f"llm_datadist_torch.{module}")
        missing = [export for export in exports if not hasattr(ours, export)]
        assert not missing, (module, missing)


def compare_class(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """For a class and each of its names: the name, and what is here of it."""
    ours = getattr(llm_datadist_torch, node.name)
    if node.name in UNSERVED:
        yield node.name, f"unserved: {UNSERVED[node.name]}"
        return
    if not any(isinstance(member, ast.FunctionDef) and member.name == "__init__" for member in node.body):
        yield node.name, SAME
    for member in node.body:
        name = full_name(node.name, member)
        yield name, compare_member(ours, member, name)


def compare_member(ours: type, member: ast.stmt, name: str) -> str:
    """What is here of a method, an attribute or a number."""
    attribute = "__init__" if name == ours.__name__ else name.rpartition(".")[2]
    static = inspect.getattr_static(ours, attribute, None)
    if isinstance(static, UnservedCall | UnservedProperty):
        return "unserved"
    if isinstance(member, ast.FunctionDef):
        compare_signature(ours, member, name)
    elif isinstance(member, ast.Assign):
        assert issubclass(ours, Enum) and ours[attribute].value == ast.literal_eval(member.value), name
    elif isinstance(member, ast.AnnAssign):
        compare_attribute(ours, member, name)
    if isinstance(static, Setting) and not static.local:
        return "has no effect"
    if name in STRICTER:
        return f"stricter: {STRICTER[name]}"
    return NOTES.get(name, SAME)


def compare_attribute(ours: type, member: ast.AnnAssign, name: str) -> None:
    """Fails if an attribute is missing, or a setting has another option or default."""
    attribute = name.rpartition(".")[2]
    if ours is not llm_datadist_torch.LLMConfig:
        documented = {field.name for field in dataclasses.fields(ours)} if dataclasses.is_dataclass(ours) else set()
        set_by_init = re.search(rf"self\.{attribute}\b[^\n]* = ", inspect.getsource(ours)) is not None
        assert hasattr(ours, attribute) or attribute in documented or set_by_init, f"{name} is missing"
        return
    config = llm_datadist_torch.LLMConfig()
    if member.value is not None:
        assert getattr(config, attribute) == ast.literal_eval(member.value), f"{name} has another default"
    if isinstance(member.annotation, ast.Subscript):
        assert isinstance(member.annotation.slice, ast.Tuple)
        option = ast.literal_eval(member.annotation.slice.elts[1])
        assert inspect.getattr_static(ours, attribute).option == option, f"{name} has another option"


def compare_signature(ours: type, member: ast.FunctionDef, name: str) -> None:
    """Fails unless a method takes LLM-DataDist's arguments, in their order and with their defaults.

    It may take more, if they have defaults.
    """
    actual = parameters(ours, member.name)
    expected = {argument.arg: "..." for argument in member.args.args if argument.arg not in ("self", "cls")}
    defaults = [ast.unparse(default) for default in member.args.defaults]
    if defaults:
        expected |= dict(zip(list(expected)[-len(defaults) :], defaults, strict=True))
    for argument, default in zip(member.args.kwonlyargs, member.args.kw_defaults, strict=True):
        expected[argument.arg] = "..." if default is None else ast.unparse(default)
    assert list(actual)[: len(expected)] == list(expected), f"{name} takes {list(actual)}"
    for argument in actual:
        wanted = expected.get(argument)
        assert actual[argument] == wanted or (wanted is None and actual[argument] != "..."), f"{name}: {argument}"


def parameters(ours: type, method: str) -> dict[str, str]:
    """The arguments of a method and their defaults as source, or ... for a required one."""
    if method == "__init__" and dataclasses.is_dataclass(ours):  # keys take *args at run time
        fields = {field.name: field.default for field in dataclasses.fields(ours) if field.init}
        return {name: "..." if value is dataclasses.MISSING else as_source(value) for name, value in fields.items()}
    signature = inspect.signature(getattr(ours, method))
    return {
        p.name: "..." if p.default is p.empty else as_source(p.default)
        for p in signature.parameters.values()
        if p.name not in ("self", "cls") and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def as_source(value: Any) -> str:
    return str(value) if isinstance(value, Enum) else repr(value)


def full_name(owner: str, member: ast.stmt) -> str:
    """The name of a member of a class, with the class; for the constructor, the class alone."""
    if isinstance(member, ast.FunctionDef):
        return owner if member.name == "__init__" else f"{owner}.{member.name}"
    assert isinstance(member, ast.Assign | ast.AnnAssign)
    return f"{owner}.{ast.unparse(member.target if isinstance(member, ast.AnnAssign) else member.targets[0])}"


if __name__ == "__main__":
    sys.exit(main())
