"""Benchmarks of `edged` beside two yardsticks.

`bare`    the interpreter alone, set_tensor, invoke, get_tensor, on inputs made beforehand: the lower bound
`script`  user_script.py, the script of a user without a daemon; improve bad code there
`edged`   this package, as a real pipeline or a real process

Every measure runs its variants in turns, round after round, so that other load on the machine affects all variants
alike. Trust medians over rounds, CPU time and ratios; an absolute wall-clock time holds for a single machine and day.
Each target is compared with the median, and a missed target is reported as missed.
"""
