"""What every layer shares: errors, types, results, clock, device. Imports nothing of ours."""
