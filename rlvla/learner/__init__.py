"""Groups with advantages in, one update of the policy out."""
