//! What a server says of itself: typed reads of its catalogs.
