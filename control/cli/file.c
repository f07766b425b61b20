/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are named on the command line: see file.h. */

#include "file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "util.h"

bool file_is_stdin(const char *file)
{
    return !file || !strcmp(file, "-");
}

const char *file_name(const char *file)
{
    return file_is_stdin(file) ? "<stdin>" : file;
}

char *file_read(const char *file, size_t max, size_t *len)
{
    FILE *f = file_is_stdin(file) ? stdin : fopen(file, "r");
    size_t allocated = 0;
    char *text = NULL;

    if (!f) {
        cli_error("cannot read %s: %s", file, ovs_strerror(errno));
        return NULL;
    }
    *len = 0;
    do {
        if (*len + 4096 > allocated)
            text = xrealloc(text, allocated = allocated * 2 + 8192);
        *len += fread(text + *len, 1, allocated - *len - 1, f);
    } while (!feof(f) && !ferror(f) && *len <= max);
    text[*len] = '\0';
    if (ferror(f)) {
        cli_error("cannot read %s: %s", file_name(file), ovs_strerror(errno));
        free(text);
        text = NULL;
    } else if (*len > max) {
        cli_error("%s is longer than %zu bytes, the limit", file_name(file), max);
        free(text);
        text = NULL;
    }
    if (f != stdin)
        fclose(f);
    return text;
}
