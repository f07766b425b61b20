/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as a stream between two agents: frames are found, decoded, and encoded again to the
 * very same bytes. */

#include "control/agent/wire.h"

#include "tests/fuzz/fuzz.h"

static void check_frame(const uint8_t *frame, size_t n)
{
    uint8_t *exact = fuzz_exact(frame, n), *again = malloc(n);
    const char *why = NULL;
    struct wire w;

    memset(&w, 0, sizeof w);
    if (!wire_decode(exact, n, &w, &why)) {
        HOLDS(w.type > 0 && w.type < WIRE_N_TYPES && wire_type_name(w.type));
        HOLDS(memchr(w.vnic, 0, sizeof w.vnic) && memchr(w.host, 0, sizeof w.host));
        HOLDS(memchr(w.text, 0, sizeof w.text));
        HOLDS(!w.blob_len || (w.blob >= exact && w.blob + w.blob_len <= exact + n));
        HOLDS(wire_encode(&w, again, n) == n && !memcmp(exact, again, n));
    } else {
        HOLDS(why && *why);
    }
    free(again);
    free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    for (;;) {
        const char *why = NULL;
        uint8_t *exact = fuzz_exact(input, size);
        long len = wire_frame_len(exact, size, &why);

        free(exact);
        HOLDS(len >= 0 || why);
        if (len <= 0 || (size_t)len > size)
            return 0;
        HOLDS(len >= MOAT_WIRE_HEAD);
        check_frame(input, (size_t)len);
        input += len;
        size -= (size_t)len;
    }
}
