// Lists of what has one name in Python and in C++: X(name, struct) for each, from which enums and texts are made.
#pragma once

#define NHL_ENTRY(name, type) name,
#define NHL_TEXT(name, type) #name,
