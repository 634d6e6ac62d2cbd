//! The native source: userfaultfd write-protection and PAGEMAP_SCAN.
