/* SPDX-License-Identifier: Apache-2.0 */

#include "engine_file.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define ENGINE_MAX (64 << 20) /* bytes; it has one */

static int load(struct engine_file *f, const char *name, const char *path, char *err,
                size_t err_size)
{
    f->handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!f->handle) {
        const char *why = dlerror();
        size_t n = strlen(name);

        /* It names the file by the name that it got. */
        if (!strncmp(why, name, n) && !strncmp(why + n, ": ", 2))
            why += n + 2;
        snprintf(err, err_size, "%s: %s", path, why);
        return -ENOEXEC;
    }
    f->entry = (moat_engine_entry_fn *)dlsym(f->handle, MOAT_ENGINE_ENTRY);
    if (!f->entry) {
        snprintf(err, err_size, "%s: it is not a Moat engine", path);
        dlclose(f->handle);
        f->handle = NULL;
        return -ENOEXEC;
    }
    return 0;
}

int engine_file_open(struct engine_file *f, const char *path, char *err, size_t err_size)
{
    *f = (struct engine_file){.copy = -1};
    return load(f, path, path, err, err_size);
}

/* Of what is open, not of what has the name. */
static int check(int fd, const char *path, off_t *size, char *err, size_t err_size)
{
    struct stat st;

    if (fstat(fd, &st)) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        return -errno;
    }
    if (!S_ISREG(st.st_mode) || (st.st_uid && st.st_uid != geteuid()) ||
        st.st_mode & (S_IWGRP | S_IWOTH)) {
        snprintf(err, err_size,
                 "%s: must be a plain file of root's (or user %u's) that nobody else may write to",
                 path, geteuid());
        return -EPERM;
    }
    if (st.st_size <= 0 || st.st_size > ENGINE_MAX) {
        snprintf(err, err_size, "%s: %lld bytes, an engine has 1 to %d", path,
                 (long long)st.st_size, ENGINE_MAX);
        return -EFBIG;
    }
    *size = st.st_size;
    return 0;
}

/* Does this shared object define the entry?  To load it in order to ask would run its constructors,
 * and libmoat.so's own ends a switch in which another one is.  Every number in it may be wrong. */
static bool has_entry(const uint8_t *file, size_t size)
{
    const Elf64_Ehdr *head = (const void *)file;
    const Elf64_Shdr *sections;

    if (size < sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) ||
        head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_shentsize != sizeof *sections ||
        head->e_shoff % sizeof(uint64_t) || head->e_shoff > size ||
        head->e_shnum > (size - head->e_shoff) / sizeof *sections)
        return false;
    sections = (const void *)(file + head->e_shoff);
    for (unsigned i = 0; i < head->e_shnum; i++) {
        const Elf64_Shdr *s = &sections[i],
                         *names = &sections[s->sh_link < head->e_shnum ? s->sh_link : 0];
        const Elf64_Sym *symbols;

        if (s->sh_type != SHT_DYNSYM || s->sh_offset % sizeof(uint64_t) || s->sh_offset > size ||
            s->sh_size > size - s->sh_offset || names->sh_offset > size ||
            names->sh_size > size - names->sh_offset)
            continue;
        symbols = (const void *)(file + s->sh_offset);
        for (size_t k = 0; k < s->sh_size / sizeof *symbols; k++)
            if (symbols[k].st_shndx != SHN_UNDEF && symbols[k].st_name < names->sh_size &&
                names->sh_size - symbols[k].st_name >= sizeof MOAT_ENGINE_ENTRY &&
                !memcmp(file + names->sh_offset + symbols[k].st_name, MOAT_ENGINE_ENTRY,
                        sizeof MOAT_ENGINE_ENTRY))
                return true;
    }
    return false;
}

static int check_entry(int fd, size_t size, const char *path, char *err, size_t err_size)
{
    void *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    bool ok;

    if (file == MAP_FAILED) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        return -errno;
    }
    ok = has_entry(file, size);
    munmap(file, size);
    if (!ok)
        snprintf(err, err_size, "%s: it is not a Moat engine", path);
    return ok ? 0 : -ENOEXEC;
}

static int copy_of(int from, off_t size)
{
    int to = memfd_create("libmoat-engine.so", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    off_t done = 0;

    while (to >= 0 && done < size) {
        ssize_t n = sendfile(to, from, &done, (size_t)(size - done));

        if (n <= 0) {
            if (!n)
                errno = EIO; /* it has become shorter */
            close(to);
            to = -1;
        }
    }
    if (to >= 0 && fcntl(to, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) {
        close(to);
        to = -1;
    }
    return to;
}

int engine_file_open_copy(struct engine_file *f, const char *path, char *err, size_t err_size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc;
    char name[64];
    off_t size = 0;

    *f = (struct engine_file){.copy = -1};
    if (fd < 0) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        return -errno;
    }
    rc = check(fd, path, &size, err, err_size);
    if (!rc) {
        f->copy = copy_of(fd, size);
        if (f->copy < 0) {
            rc = -errno;
            snprintf(err, err_size, "%s: cannot be read: %s", path, strerror(errno));
        }
    }
    close(fd);
    if (!rc)
        rc = check_entry(f->copy, (size_t)size, path, err, err_size);
    if (rc) {
        engine_file_close(f);
        return rc;
    }
    snprintf(name, sizeof name, "/proc/self/fd/%d", f->copy);
    rc = load(f, name, path, err, err_size);
    if (rc)
        engine_file_close(f);
    return rc;
}

void engine_file_close(struct engine_file *f)
{
    if (f->handle)
        dlclose(f->handle);
    /* Only now may its number be given to another copy. */
    if (f->copy >= 0)
        close(f->copy);
    *f = (struct engine_file){.copy = -1};
}
