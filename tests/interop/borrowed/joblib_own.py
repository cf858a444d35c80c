"""joblib's own tests of its backends, with "nbqueue" written where they say "loky", and as joblib's default.

Tests of things that a backend has no part in (hashing, pickles on disk, memory) are not run.
"""

from __future__ import annotations

import atexit
import gc
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from typing import Any

import joblib
import pytest

from nbqueue.interop.joblib import NbqueueBackend

joblib.register_parallel_backend("nbqueue", NbqueueBackend, make_default=True)

_INITIALIZER = "Workers belong to all who use the queue: a Parallel call cannot prepare them, and that is refused."
_NESTED = "It wants a warning that loops cannot be nested so. Here they can."
_MEMMAP = "It wants a numpy.memmap of joblib's own file. Here it is a read-only array in shared memory."
_GARBAGE = "It wants the next loop to fail when a generator was lost, as loky's does. Here it does its work."

EXCLUDED = {
    "test_auto_memmap_on_arrays_from_generator": _MEMMAP,
    "test_dispatch_multiprocessing": "Its tasks write into a list of a multiprocessing.Manager, which lets in only "
    "processes that multiprocessing has started.",
    "test_error_capture": "It wants a KeyboardInterrupt that a task raises to interrupt the caller. Here it is an "
    "error like any other (RemoteError), so that no task ends a kernel. It also looks at loky's executor itself.",
    "test_initializer_context": _INITIALIZER,
    "test_initializer_not_reused": _INITIALIZER,
    "test_initializer_parallel": _INITIALIZER,
    "test_initializer_reused": _INITIALIZER,
    "test_loky_reuse_workers": "It looks at loky's executor itself. Workers belong to the queue, which keeps them.",
    "test_memmapping_leaks": _MEMMAP,
    "test_multiple_generator_call_separated_gc": _GARBAGE,
    "test_nested_parallel_warnings[multiprocessing-nbqueue-True]": _NESTED,
    "test_nested_parallel_warnings[nbqueue-multiprocessing-True]": _NESTED,
    "test_nested_parallel_warnings[threading-nbqueue-True]": _NESTED,
    "test_parallel_pickling": "It wants a PicklingError. It is a NotSendable, which names the argument.",
    "test_parallel_with_interactively_defined_bound_method_loky": "It looks for loky's processes in a log.",
    "test_threadpool_limitation_in_child_override": "It changes the environment of workers that are there. They have "
    "the one in which they were started.",
}


def _adapted() -> str:
    spec = util.find_spec("joblib.test.test_parallel")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    for old, new in (
        (r"from \.", "from joblib.test."),
        (r"^    LokyBackend,\n", ""),
        (r"joblib\._parallel_backends\.LokyBackend", "NbqueueBackend"),
        (r"LokyBackend", "NbqueueBackend"),
        (r"([\"'])loky\1", r"\1nbqueue\1"),
        (r"PROCESS_BACKENDS = \[.*\]$", 'PROCESS_BACKENDS = ["nbqueue"]'),
        # In the scripts that some tests start, too.
        (r"^( *)from joblib import Parallel", r"\1from nbqueue.interop.joblib import NbqueueBackend\n\g<0>"),
        (r"^( *)from joblib\.parallel import \($", r"\1from nbqueue.interop.joblib import NbqueueBackend\n\g<0>"),
    ):
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count or "LokyBackend," in old or "PROCESS" in old, f"joblib's tests have changed: no {old}"
    return text


_folder = tempfile.mkdtemp(prefix="nbqt-borrowed-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
Path(_folder, "joblib_on_nbqueue.py").write_text(_adapted())
sys.path.insert(0, _folder)
_theirs = import_module("joblib_on_nbqueue")
globals().update({name: value for name, value in vars(_theirs).items() if name.startswith("test_")})


@pytest.fixture(scope="module", autouse=True)
def loky_ended() -> Iterator[None]:
    """loky's processes would wait for more to do."""
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    gc.collect()


def concerns(item: Any) -> bool:
    """Whether a test has to do with this backend: those of others are run by joblib itself."""
    values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    named = [value for value in values if isinstance(value, str) and value in {*joblib.parallel.BACKENDS, "spawn"}]
    made = [value for value in values if isinstance(value, joblib.parallel.ParallelBackendBase)]
    if named or made:
        return "nbqueue" in named or any(isinstance(each, NbqueueBackend) for each in made)
    return not any(hasattr(value, "Pool") for value in values)
