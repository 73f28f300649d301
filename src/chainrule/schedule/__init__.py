"""Graph -> Program: which formulas share a loop, where their values live, in what order kernels run.

`schedule` is the whole of it: tasks (`task`), their kernels (`kernels`), each one's loops (`tree`), what they store
(`storage`), written down as `ir.program` has it (`emit`), with the lifetimes of what lies between (`memory`).
"""

from chainrule.schedule.scheduling import schedule

__all__ = ["schedule"]
