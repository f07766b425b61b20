/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_FILE_H
#define MOAT_CLI_FILE_H 1

/* Files that are named on the command line; NULL and "-" are standard input. */

#include <stdbool.h>
#include <stddef.h>

bool file_is_stdin(const char *file);
const char *file_name(const char *file); /* for messages */

/* The whole file with a NUL behind it, in memory that the caller frees.  NULL: it cannot be read or
 * is longer than max, and that has been said. */
char *file_read(const char *file, size_t max, size_t *len);

#endif /* control/cli/file.h */
