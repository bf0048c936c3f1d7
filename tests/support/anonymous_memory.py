"""Source of a function for scripts that measure their own memory."""

# Anonymous memory only: pages of the mapped weight files belong to the page cache and go when they are needed.
PEAK_DURING = '''
import ctypes, gc, threading
from pathlib import Path

def anonymous():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

def peak_during(action):
    """Bytes in addition to those before, and the result of the action."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be reused unseen
    before = highest = anonymous()
    done = threading.Event()
    def watch():
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    result = action()
    done.set()
    thread.join()
    return max(highest, anonymous()) - before, result
'''
