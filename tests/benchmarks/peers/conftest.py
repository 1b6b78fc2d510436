# These run inside the peers' own environments and cannot be imported in this one.
collect_ignore = ["inside"]
