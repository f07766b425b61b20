/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_LOADER_ENGINE_FILE_H
#define MOAT_LOADER_ENGINE_FILE_H 1

/* An engine as a shared object that is loaded, and can be unloaded. */

#include <stddef.h>

#include "engine_abi.h"

struct engine_file {
    void *handle;
    int copy; /* descriptor of the copy that was loaded; -1: the file itself was */
    moat_engine_entry_fn *entry;
};

/* Loads the file itself.  0, or negative errno with the reason in err. */
int engine_file_open(struct engine_file *, const char *path, char *err, size_t err_size);

/* Loads a copy of the file in memory.  The dynamic linker gives what it has already, if the same
 * name or file is asked for again; a copy is always new, and no longer anybody's to change.  The
 * file must be owned by root or by us, and nobody else may write to it. */
int engine_file_open_copy(struct engine_file *, const char *path, char *err, size_t err_size);

/* Nobody is in it, and nobody will be. */
void engine_file_close(struct engine_file *);

#endif /* datapath/loader/engine_file.h */
