"""The commands beside training: their options, and what each prints. What one needs is imported when it runs."""
