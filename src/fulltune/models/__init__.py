"""What a checkpoint's files say about themselves, checked and reconciled when it is loaded."""

import logging

# On some processors bitsandbytes, once imported, tells of a kernel that it could fetch from a hub; nothing is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# DeepSpeed, where it is installed, is imported by others, and then tells that this machine has no accelerator.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
