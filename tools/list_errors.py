# SPDX-License-Identifier: Apache-2.0
"""Lists every error that a call can raise, from the source: `make docs` puts the page on the site.

A text is the one of the source, with the name of what it prints in braces.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RAISED = ("TypeError", "ValueError", "RuntimeError", "AttributeError")
# What each kind means, and what to do.
KINDS = {
    "ValueError": (
        "The ops refuse a call. Nothing has been written. ``CacheManager`` raises the same as LLM_PARAM_INVALID.",
        "Change the argument that the text names. The text says which values are allowed.",
    ),
    "TypeError": ("An argument has the wrong type.", "Pass what the text asks for."),
    "LLM_PARAM_INVALID": (
        "An argument has a value that is not allowed. Nothing has been written.",
        "Change the argument that the text names. The text says which values are allowed.",
    ),
    "LLM_KV_CACHE_NOT_EXIST": (
        "There is no such cache, here or in the other process.",
        "Look whether it was deallocated, unregistered, or pulled before: a pull removes the key of a request.",
    ),
    "LLM_NOT_YET_LINK": (
        "There is no link to the process, or the link has ended.",
        "Call ``link_clusters`` or ``link``, and wait for its success. After LLM_TIMEOUT and LLM_LINK_FAILED link again.",
    ),
    "LLM_ALREADY_LINK": ("There is a link to the process.", "Use it, or end it with ``unlink_clusters``."),
    "LLM_EXIST_LINK": ("The call needs a process without links.", "Call ``unlink_clusters`` first."),
    "LLM_LINK_FAILED": (
        "The other process cannot be reached, or its answer is not that of a peer.",
        "Look at its log and address, and whether both processes have the same secret and version. Then link again.",
    ),
    "LLM_LINK_BUSY": ("Another call uses the link, or makes it.", "Wait for that call, and try again."),
    "LLM_TIMEOUT": (
        "The call took longer than its limit. What the destination holds is undefined.",
        "Raise ``sync_kv_timeout``, or look for what the stream or the other process waits for.",
    ),
    "LLM_ENGINE_FINALIZED": ("The manager has been finalized.", "Call ``init`` again, and use the new manager."),
    "LLM_FEATURE_NOT_ENABLED": ("Something that the call needs is not there.", "Install or use what the text names."),
    "LLM_DEVICE_OUT_OF_MEMORY": ("The NPU has no memory for a cache.", "Deallocate caches, or raise the pool."),
    "LLM_OUT_OF_MEMORY": (
        "The memory pool or the host has no memory for a cache.",
        "Deallocate caches, or raise the pool.",
    ),
    "LLM_FAILED": (
        "A copy or a setting failed while it was carried out.",
        "Read the cause in the text. After an error of the device, restart the process.",
    ),
    "RuntimeError": (
        "The state of the process or the device does not allow the call.",
        "Do first what the text names. After an error of the device, restart the process.",
    ),
    "NotImplementedError": (
        "The tensors are of a device or a kind that no kernel serves.",
        "Move them to the CPU or an NPU. If they are on an NPU, import torch_npu before this package is used.",
    ),
    "AttributeError": ("There is no such setting.", "Use one of those that the text lists."),
}


def python_errors(source: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each error in Python code."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        texts = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
                continue
            kind = call.func.id
            if kind == "llm_error" and isinstance(call.args[0], ast.Attribute):
                kind = call.args[0].attr
            elif kind == "param_invalid":
                kind = "LLM_PARAM_INVALID"
            elif kind not in RAISED:
                continue
            text = call.args[-1]
            text = texts.get(text.id, text) if isinstance(text, ast.Name) else text
            if isinstance(text, ast.JoinedStr | ast.Constant):
                yield kind, printed(text)


def printed(text: ast.expr) -> str:
    """The text of a string or f-string."""
    if isinstance(text, ast.Constant):
        return str(text.value)
    assert isinstance(text, ast.JoinedStr)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{" + last_name(ast.unparse(part.value)) + "}"
        for part in text.values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )


def last_name(expression: str) -> str:
    """The name in an expression that says most of what it prints."""
    if "TensorName" in expression:
        return "tensor"
    expression = re.sub(r"static_cast<.*?>\((.*)\)", r"\1", expression)
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\(.*?\)|\[.*?\]", "", expression))
    return str(names[-1]).strip("_")


# The macros that raise in C++: the exception, and the arguments before the text.
MACROS = {
    "CHECK_CALL": ("ValueError", 2),
    "TORCH_CHECK": ("RuntimeError", 2),
    "TORCH_CHECK_WITH": ("RuntimeError", 3),
    "TORCH_CHECK_NOT_IMPLEMENTED": ("NotImplementedError", 2),
}


def cpp_errors(source: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each error in C++ code."""
    for found in re.finditer(rf"(?<!#define )\b({'|'.join(MACROS)})\(", source):
        kind, skipped = MACROS[found[1]]
        rest = source[found.end() :]
        parts: list[str] = []
        depth, part, quoted = 0, "", False
        for at, char in enumerate(rest):
            quoted ^= char == '"' and rest[at - 1] != "\\"
            if not quoted and char == ")" and depth == 0:
                break
            depth += 0 if quoted else (char in "([{") - (char in ")]}")
            if char == "," and depth == 0 and not quoted:
                parts, part = [*parts, part], ""
            else:
                part += char
        text = ""
        for one in [*parts, part][skipped:]:
            literals = re.findall(r'"((?:[^"\\]|\\.)*)"', one)
            text += ("/" if "?" in one else "").join(literals) if literals else "{" + last_name(one) + "}"
        text = text.removeprefix(": ").removesuffix("{request}")
        if not re.fullmatch(r"\{\w+\}", text):  # an error of another place, raised again
            yield kind, text


def page() -> str:
    """The page, in reStructuredText."""
    errors: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.glob("csrc/**/*.[ch]*")):
        for kind, text in cpp_errors(path.read_text()):
            errors[kind].add(text)
    for path in sorted(ROOT.glob("llm_datadist_torch/**/*.py")):
        for kind, text in python_errors(path.read_text()):
            # A ValueError in remote/ ends a link whose peer breaks the protocol.
            if kind != "ValueError" or path.parent.name != "remote":
                errors[kind].add(text)
    unknown = errors.keys() - KINDS.keys()
    if unknown:
        raise SystemExit(f"tools/list_errors.py: no line in KINDS for {sorted(unknown)}")
    lines = [
        "Errors",
        "======",
        "",
        "Every text begins with the call and ends with the req_id, where there is one. Words in braces stand for values.",
    ]
    for kind, (cause, action) in KINDS.items():
        if errors[kind]:
            lines += ["", kind, "-" * len(kind), "", f"{cause} {action}", ""]
            lines += [f"- ``{text}``" for text in sorted(errors[kind], key=str.lower)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
