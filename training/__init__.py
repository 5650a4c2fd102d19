"""Training: noise levels, objective, loss, optimisers, schedules, and the loop around them."""
