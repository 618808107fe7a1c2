"""Step times of real engine hosts on this machine, spoken to as a unit's scheduler does."""
