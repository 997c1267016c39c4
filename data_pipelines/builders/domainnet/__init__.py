"""`domainnet`: DomainNet, 345 classes, sketches and photos (domain "real"); downloaded by TFDS.

Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019, cleaned version. The
TFDS catalogue has one data set per domain, which is read in place. Sketches were not drawn from the
photos, so there are no instance pairs.
"""

CATALOGUE = {"sketch": "domainnet/sketch", "photo": "domainnet/real"}
"""Modality -> name in the TFDS catalogue."""

HOMEPAGE = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
"""The server that TFDS downloads from: about 8 GB; unpacking needs twice as much disk space."""
