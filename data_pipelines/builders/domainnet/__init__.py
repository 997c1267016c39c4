"""`domainnet`: DomainNet, 345 classes, sketches and photos (domain "real"); downloads itself.

Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019, in its cleaned version.
The data set is in TFDS's own catalogue, one entry for each domain: nothing is unpacked by hand and
nothing is copied. Sketches were not drawn from the photos, so there are no instance pairs.
"""

CATALOGUE = {"sketch": "domainnet/sketch", "photo": "domainnet/real"}
"""Modality -> name in TFDS's catalogue."""

HOMEPAGE = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
"""The server that TFDS downloads from: about 8 GB, and twice as much while it unpacks."""
