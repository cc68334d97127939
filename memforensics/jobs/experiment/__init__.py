"""Commands that memforensics starts and ends itself: prove, ci, and what both share."""
