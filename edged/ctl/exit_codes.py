"""What `edgectl` says with its exit code."""

DONE = 0
BAD = 1
USAGE = 2
NOT_RUNNING = 3
FAILED = 4
UNREACHABLE = 5
REFUSED = 6
UNFIT = 7
ROLLED_BACK = 8
INTERRUPTED = 130
BROKEN_PIPE = 141

MEANINGS = {
    DONE: "done, and all is well",
    BAD: "done, and the answer is bad: a check failed",
    USAGE: "the command line is wrong",
    NOT_RUNNING: "the daemon answers, but not everything runs; or no pipeline uses what was installed",
    FAILED: "it could not be done; standard error says why and what to do",
    UNREACHABLE: "no daemon answers, or the device cannot be reached",
    REFUSED: "the device refused the new version; nothing has changed there",
    UNFIT: "the new version could not be made to serve on that device; the old one does",
    ROLLED_BACK: "the new version served and had to go; the one before serves again",
    INTERRUPTED: "interrupted with Ctrl-C before it was done",
    BROKEN_PIPE: "nobody reads the output any more",
}
