"""Scripted experts: the goal of a task becomes a plan, the plan skills, the skills motions of the hand."""
