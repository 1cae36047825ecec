"""What `realign doctor` looks at, one file per subject. Each check returns findings and changes nothing."""
