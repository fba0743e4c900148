"""Cryptography of disk images, pure: no I/O, no event loop. What takes long is for a worker thread.

algorithms     what ciphers, modes, initialisation vectors and hashes are called, and which can be done
sectors        sectors encrypted and decrypted, each with its own initialisation vector
pbkdf          keys from passwords
antiforensic   keys spread over much of the disk, so that they can be erased
luks           the header of LUKS version 1
keyslots       master keys put into key slots, and taken out with a password
"""
