"""What `edged` costs, against two yardsticks measured beside it.

`bare`    the interpreter alone: set_tensor, invoke, get_tensor, on inputs made beforehand. Nobody can do with less.
`script`  user_script.py, what somebody writes who has no daemon. It is honest code: make it better where it is bad.
`edged`   this package as it is, its real pipeline or its real process.

Every measure takes its variants in turns, round after round in one run, so that whatever else the machine does befalls
them alike. Believe medians over rounds, CPU time and ratios; an absolute wall-clock time is this machine's today.
Each target is held against the median, and one that is missed is reported as missed.
"""
