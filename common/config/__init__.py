"""Settings at the door: frozen typed sections that become command-line flags, TOML keys and printed settings."""

from common.config.foreign import Foreign
from common.config.parse import check_values, from_values, parse
from common.config.section import FlagField, Section, flag, flags_of
from common.config.show import to_toml
from common.config.toml import TomlDocument, read_toml

__all__ = ["FlagField", "Foreign", "Section", "TomlDocument", "check_values", "flag", "flags_of", "from_values",
           "parse", "read_toml", "to_toml"]
