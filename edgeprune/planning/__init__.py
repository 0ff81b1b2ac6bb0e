"""What to cut: the budget, the moves, the greedy planner. Pure and free of torch."""
