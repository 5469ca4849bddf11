"""Studies: matched budgets, a runner that resumes, statistics and a report."""
