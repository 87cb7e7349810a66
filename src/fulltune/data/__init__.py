"""From files to rows: reading, splitting, and the audit that runs before anything is trained."""
