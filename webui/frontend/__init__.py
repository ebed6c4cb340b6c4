"""What the console's pages load that others wrote: pinned in package-lock.json, fetched by `make`, never committed."""
