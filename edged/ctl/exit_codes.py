"""Exit codes of `edgectl`."""

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
    NOT_RUNNING: "the daemon answers, but a part does not run; or no pipeline uses the installed version",
    FAILED: "the verb failed; standard error has the reason and the remedy",
    UNREACHABLE: "no daemon answers, or the device cannot be reached",
    REFUSED: "the device refused the new version and has not changed",
    UNFIT: "the new version does not work on the device; the old version serves",
    ROLLED_BACK: "the new version served and was rolled back; the previous version serves again",
    INTERRUPTED: "interrupted with Ctrl-C",
    BROKEN_PIPE: "the reader of the output is gone",
}
