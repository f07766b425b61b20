/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_TRIALS_H
#define TESTS_TRIALS_H 1

/* How many random inputs.  The address sanitizer gets fewer: it makes them five times slower, and what
 * it looks for is not in the last of a million. */
#ifdef __SANITIZE_ADDRESS__
#define TRIALS(N) ((N) / 5)
#else
#define TRIALS(N) (N)
#endif

#endif /* tests/lib/trials.h */
