/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_CRASH_IMAGE_H
#define MOAT_TESTS_CRASH_IMAGE_H 1

/* What a mapping holds, as text: it is opened by a fresh engine, whose slots, sessions and
 * verdicts are written down.  One line for each slot, then each session (sorted), then each
 * probe:
 *
 *   slot 0 ...
 *   count 0 <sessions> <half-open>
 *   session vnic-a <key> | <what decides verdicts>
 *   probe 17 0            reason, 0: passes
 *
 * Sessions are told by their published records, so this does not know how the table keeps them.
 * Counts of packets and bytes are left out: they decide nothing. */

#include <stdbool.h>

#include "tests/lib/rig.h"

#define IMAGE_SESSIONS 1024 /* size of the tables of these tests */

/* A mapping's file, in memory. */
struct image_file {
    uint8_t *bytes;
    size_t used; /* bytes, whole pages; behind them is the index, which is rebuilt */
    size_t size; /* of the file */
};

/* Makes a file of it, of that name. */
void image_write(const struct image_file *, const char *path);

#define IMAGE_PROBES 0x01
#define IMAGE_SIDES 0x02   /* what TCP says of both ends, too */
#define IMAGE_DAMAGED 0x04 /* it may be damaged: that is told in a first line; else it fails */
#define IMAGE_ALL (IMAGE_PROBES | IMAGE_SIDES)

/* Opens a copy of the mapping and tells.  The caller frees. */
char *image_of(const struct image_file *, unsigned what);

/* The same of the file at path, itself. */
char *image_of_path(const char *path, unsigned what);

/* Is every line of got one of before or of after, are all lines that both have in got, and is no
 * key there twice? */
bool image_is_between(const char *got, const char *before, const char *after);

/* For people: prints what is in one of them and not in the others. */
void image_tell_difference(const char *got, const char *before, const char *after);

/* A name for a new file; the caller unlinks it. */
void image_path(char out[64]);

#endif /* tests/datapath/crash_image.h */
