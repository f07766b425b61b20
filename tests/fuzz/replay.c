/* SPDX-License-Identifier: Apache-2.0 */

/* A target without libFuzzer: runs it on every file of the folders named, in the order of
 * their names.  Thus each build of any compiler replays corpora and regressions. */

#include <dirent.h>
#include <errno.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_MAX (1u << 20)

static void replay(const char *path)
{
    static uint8_t buf[INPUT_MAX];
    FILE *f = fopen(path, "rb");
    uint8_t *exact;
    size_t n;

    if (!f) {
        perror(path);
        exit(1);
    }
    n = fread(buf, 1, sizeof buf, f);
    fclose(f);
    exact = fuzz_exact(buf, n);
    if (getenv("FUZZ_VERBOSE"))
        fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

static int visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static unsigned replay_folder(const char *folder)
{
    struct dirent **names;
    int n = scandir(folder, &names, visible, alphasort);

    if (n < 0) {
        if (errno == ENOENT)
            return 0;
        perror(folder);
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        char path[4096];

        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        replay(path);
        free(names[i]);
    }
    free(names);
    return (unsigned)n;
}

int main(int argc, char **argv)
{
    unsigned n = 0;

    for (int i = 1; i < argc; i++)
        n += replay_folder(argv[i]);
    printf("%u inputs replayed\n", n);
    return n ? 0 : 1; /* a missing corpus is no success */
}
