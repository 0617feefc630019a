"""What time and energy cost: the prices that the user states, and meters of energy."""
