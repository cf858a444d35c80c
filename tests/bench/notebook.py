"""What a measured process runs, as the text of ``python -c``: there is no file, as there is none in a notebook.

So these functions live in `__main__`, and each library has to send them as it can. The arguments are the name of the
peer and of the work, the number of workers, its sizes as JSON, and the file that takes what was measured.
"""

import sys


def identity(x):
    return x


def square(x):
    return x * x


def spin(cpu_s):
    """Work for that many seconds of CPU time, not of the clock: what others take from the core makes it last longer."""
    from time import thread_time

    end = thread_time() + cpu_s
    while thread_time() < end:
        pass


def touch(array):
    """One byte of each page, so that an array that was only mapped is read, too."""
    return int(array[::512].sum())


def touch_shared(item, array):
    return item + int(array[::512].sum())


def make_array(count, value=1.0):
    import numpy

    return numpy.full(count, value)


def make_bytes(size):
    return b"\x5a" * size


def hold(path):
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def die_once(path):
    """The first time, end the worker and leave a note of when; the second time, say who ran it."""
    import os
    import time

    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write(repr(time.monotonic()))
        os._exit(3)
    return os.getpid()


if __name__ == "__main__":
    from tests.bench.measures import main

    main(sys.argv[1:], sys.modules["__main__"])
