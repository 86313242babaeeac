const images = await client.getAvailableOsImages();
images.forEach(img => console.log(img.name, img.version));
