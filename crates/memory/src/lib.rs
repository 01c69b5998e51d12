//! Linux memory mechanisms: memfd, userfaultfd, PAGEMAP_SCAN, attaching to another process.
